"""The training loop and what it stands on; knows neither the model nor the data."""
