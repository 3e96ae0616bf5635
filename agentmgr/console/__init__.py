"""The console: the web page of a manager, and what serves it from memory.

In reading order:

    static       the page: `index.html`, `style.css`, `styles`, our modules beginning with `main.js`, `vendor`
    bundle       makes one module of ours, so that a browser asks for it once
    files        each file as it is sent: its type, its compressed form, and a name that goes by the contents

The API serves it (`api.resources.console`), under a policy that lets the page load nothing from elsewhere.

Invariants:

* What is served follows from the files alone: the same files have the same names, hashes and bytes.
* A file under `/console/assets/HASH/` never changes: HASH is of all files.
* A mistake in a module ends in a `BundleError` with file and line, before any browser sees it.

Words: *own module*, one in `static` outside of `vendor`; *composed*, put into the one module.

It must not know the API or a manager.
"""
