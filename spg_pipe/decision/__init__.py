"""The additive decision: named components of maps and images, standardised and added up."""
