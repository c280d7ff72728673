"""Painted images: the built-in demo sets, and defects on a person's own normal images.

One interface for every kind of defect (`canvas`): a painter takes a normal image and a random
generator, and returns an appearance and how much of it covers the image. `drawn` defects take the
photograph's colour and contrast (the demo sets'), `pasted` ones are foreign texture (`synthesise`).
"""
