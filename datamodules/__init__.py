"""One LightningDataModule per preference dataset."""
