"""Sessions of Flask in memory: each is known to the worker that has begun it."""
import os
import uuid

from flask import Flask, request

app = Flask(__name__)
visits = {}  # by session


@app.after_request
def name_worker(response):
    response.set_cookie("route", os.environ["HANDFAST_ROUTE"], httponly=True, samesite="Lax")
    return response


@app.get("/")
def visit():
    session = request.cookies.get("id") or str(uuid.uuid4())
    visits[session] = visits.get(session, 0) + 1
    response = app.make_response(f"slot={os.environ['HANDFAST_SLOT']} generation={os.environ['HANDFAST_GENERATION']} visits={visits[session]}\n")
    response.set_cookie("id", session, httponly=True, samesite="Lax")
    return response
