"""Says how often each client was here. What it knows of them is in its memory."""
import http.server
import os

visits = {}


class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        client = self.client_address[0]
        visits[client] = visits.get(client, 0) + 1
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(f"worker {os.environ.get('HANDFAST_SLOT')}: visit {visits[client]} of {client}\n".encode())


http.server.ThreadingHTTPServer(("", int(os.environ.get("PORT", 8080))), Hello).serve_forever()
