"""The config keys that a resumed run may change, and those that differ from earlier versions."""

# A resumed run may change how long it trains, how often it logs, evaluates and saves, and where and
# in which portions it computes. None of this changes the updates already made. Those to come change
# by the rounding of another mesh or number of microbatches; with dropout, another number of
# microbatches also draws other random bits. A key that ends in a dot stands for its whole group.
MAY_CHANGE = (
    "train.steps",
    "schedule.decay_steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "spikes.",
    "train.per_device_batch_size",
    "eval.batch_size",
    "mesh.",
    "execution.attention",
    "execution.layer_norm",
    "execution.remat",
    "execution.scan_unroll",
    "data.cache_dir",
    "data.num_workers",
    "data.engine",
    "distributed.",
)

# The hosts of one run may differ in these keys: each may prepare the text in a folder of its own.
MAY_DIFFER = ("data.cache_dir", "data.num_workers", "data.engine")

# Former name -> present name, for error messages.
RENAMED = {
    "data.duplicates": "data.dupe_factor",
    "data.heldout_share": "data.validation_fraction",
    "data.separators": "data.num_separators",
    "data.workers": "data.num_workers",
    "masking.copies": "masking.dupe_factor",
    "masking.mask_share": "masking.mask_replace_prob",
    "masking.max_span": "masking.max_span_length",
    "masking.random_share": "masking.random_replace_prob",
    "masking.span_p": "masking.geometric_p",
    "masking.specials": "masking.mask_special_tokens",
    "masking.unit": "masking.scheme",
    "masking.whole_word": "masking.scheme",
    "optimizer.decay": "optimizer.decay_mask",
    "train.rows_per_device": "train.per_device_batch_size",
}

# Keys that were added, with the values that runs of earlier versions behaved by.
ADDED = {
    "data.order": "full",
    "data.order_block_tokens": 1 << 22,
    "data.order_window_blocks": 16,
    "data.order_streams": 16,
    "data.validation_max_overlap": 1.0,
    "distributed.heartbeat_timeout": 40.0,
    "distributed.late_timeout": 600.0,
    "distributed.start_timeout": 300.0,
    "execution.attention": "auto",
    "execution.layer_norm": "auto",
    "mesh.shard_optimizer_state": False,
    "mesh.slices": None,
    "schedule.name": "polynomial",
    "spikes.policy": "none",
    "train.keep_every": 0,
}

# Values of earlier versions that have another name or form now.
REVALUED = {
    "masking.scheme": {"word": "whole_word"},
    "schedule.power": {1.0: None},
}
