"""The HTTP server: rerank APIs of four dialects over one engine, with health, metrics and a page. Needs the extra
`serve`; needs no torch.

    from rankwright.server.app import create_app
    app = create_app(engine, ServerSettings(keys=("secret",)))
"""
