"""A page to draw on: what sample.py does, in a browser. Only page.py and server.py know gradio."""
