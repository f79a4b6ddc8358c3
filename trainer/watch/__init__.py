"""`make watch`: a page on 127.0.0.1 that shows a run of any store as it runs, and its report.

`server` answers the browser, `reader` reads the store in the background, `shown` makes text of what was read.
"""
