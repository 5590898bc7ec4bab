"""The alphabet in which GPT-2's vocabulary files write bytes."""


def byte_alphabet() -> dict[str, int]:
    """Returns the byte that each character of a byte-level token stands for.

    Printable Latin-1 characters stand for their own byte. The other 68 bytes, in ascending order,
    are written as the characters from U+0100 on: "Ġ" is the space and "Ċ" the line feed.

    Returns:
      A dictionary from character to byte, in the order of GPT-2's ids 0 to 255.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
