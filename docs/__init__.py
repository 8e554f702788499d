"""The pages of the lab, and the programs that belong to them."""
