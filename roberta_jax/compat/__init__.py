"""Drop-in replacements for the Flax RoBERTa classes of transformers 4.

`models` defines the classes. What they share is in `base` (construction and calls), `pretrained`
(`from_pretrained` and `save_pretrained`, with `loading` and `saving` for the files), `config`,
`outputs`, and `generation` with `generation_config` and `generation_options`.
"""
