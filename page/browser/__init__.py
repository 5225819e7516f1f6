"""What the browser is given: HTML, styles, and the script of the canvas."""
