"""Files to records, records to planned, tokenised global batches. Imports no torch."""
