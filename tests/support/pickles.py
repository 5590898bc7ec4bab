"""Pickles and archives as `torch.save` writes them, made by hand."""

import zipfile

from roberta_jax.weights.formats import pytorch


def archive(path, data, entries=(), compression=zipfile.ZIP_STORED):
    """Writes PyTorch's zip archive around a pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", data)
        for name, content in entries:
            file.writestr(f"archive/{name}", content)
    return path


def tensor_pickle(offset, shape, strides, key="0", count=6):
    """The pickle of a state dict with one tensor "a", a view of a float32 storage."""
    described = pytorch._pickled((offset, shape, strides))[1:-1]
    storage = pytorch._pickled(("storage", 0, key, "cpu", count))
    storage = storage.replace(b"J\x00\x00\x00\x00", b"ctorch\nFloatStorage\n", 1)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"Q" + described + b"\x89NtR"
    return b"\x80\x02}" + pytorch._pickled("a") + tensor + b"s."
