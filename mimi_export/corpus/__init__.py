"""Corpora: many recordings to Parquet files of codes, on the cores of one machine or on a Ray cluster."""
