"""Crops: tables of them, readers of data sets, pictures, batches, the synthetic world."""
