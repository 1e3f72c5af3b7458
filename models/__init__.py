"""One LightningModule per method, over one shared core."""
