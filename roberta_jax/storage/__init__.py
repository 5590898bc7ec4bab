"""Files and folders: the Hugging Face hub, object stores, writes that are whole or not at all."""
