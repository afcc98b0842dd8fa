"""A page to draw on: what sample.py does, in a browser. Only form, answers, page and server know gradio."""
