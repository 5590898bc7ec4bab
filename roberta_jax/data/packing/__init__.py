"""Packing: divides the text into inputs and assigns inputs to rows."""
