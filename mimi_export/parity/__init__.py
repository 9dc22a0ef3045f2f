"""Parity: how far a variant's graphs are from untouched batch PyTorch, and whether that may be published.

    reference   batch PyTorch over whole clips: latents, codes, audio
    measure     a variant's graphs run as streams beside it, into a `VariantReport`
    audit       the files without running them: interface, operators, every weight
    situations  the graphs where no clip brings them: old streams, different rows, every size of call
    checks      a report against the variant's budgets, and against what needs none
    explain     the first place inside a graph that parts from the PyTorch step functions
    reports     the result as JSON, Markdown, JUnit XML and one self-contained HTML page

`metrics` and `ties` are pure numpy; nothing here prints.
"""
