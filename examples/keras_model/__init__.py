"""A Keras model brought over: run by Elman within Keras, and served without Keras."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras's own default is TensorFlow
