"""What the commands generate.py and convert_hf.py share."""
