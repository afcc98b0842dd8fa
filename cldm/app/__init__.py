"""A page to draw on: what sample.py does, in a browser. Only said, form, answers, page and server know gradio."""
