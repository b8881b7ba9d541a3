"""What trains, evaluates and records. The contract files at this level are light and imported everywhere;
`runner.study` is the only home of torch, `runner.box` runs with the standard library alone.
"""
