"""The methods and classes by which Hugging Face's fast tokenizers are called.

- `call`: `tokenizer(...)`, `encode`, `decode` and their relatives; `call_arguments` reads their
  arguments.
- `batch_encoding`: the class of what a call returns.
- `model_inputs`: `prepare_for_model`, `pad` and other methods that work on ids instead of texts.
- `tokens`: special tokens, added tokens, and the conversion of tokens to ids and back.
"""
