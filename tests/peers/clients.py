"""The CloudEvents SDK and boto3 as users have them, against a running platform."""
import json
import os
import struct
import time
import urllib.request
import zlib

import boto3
from botocore.client import Config
from botocore.exceptions import ClientError
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent

API = os.environ["API"]


def png(width, height):
    """A grey PNG."""
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    rows = b"".join(b"\0" + bytes([120] * width * 3) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def get(path):
    with urllib.request.urlopen(API + path) as answer:
        return json.load(answer)


def post(headers, body):
    request = urllib.request.Request(API + "/v1/events", data=body, headers=dict(headers), method="POST")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 202, answer.status


s3 = boto3.client(
    "s3", endpoint_url=os.environ["S3"], region_name="us-east-1",
    aws_access_key_id=os.environ["ACCESS_KEY"], aws_secret_access_key=os.environ["SECRET_KEY"],
    config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
)
assert {b["Name"] for b in s3.list_buckets()["Buckets"]} >= {"raw-images", "processed-images", "system-logs"}
for n in (1, 2):
    s3.put_object(Bucket="raw-images", Key=f"orders/Grüße {n}.png", Body=png(64 + n, 48), ContentType="image/png")
head = s3.head_object(Bucket="raw-images", Key="orders/Grüße 1.png")
assert head["ContentType"] == "image/png", head
try:
    s3.put_object(Bucket="raw-images", Key="orders/Grüße 1.png", Body=b"x", IfNoneMatch="*")
    raise SystemExit("If-None-Match was ignored")
except ClientError as error:
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 412, error
url = s3.generate_presigned_url("get_object", Params={"Bucket": "raw-images", "Key": "orders/Grüße 2.png"})
assert urllib.request.urlopen(url).read() == png(66, 48)

for n, to in ((1, to_binary), (2, to_structured)):
    event = CloudEvent(
        {"type": "com.example.order", "source": "urn:shop", "id": f"order-{n}"},
        {"bucket": "raw-images", "key": f"orders/Grüße {n}.png"},
    )
    post(*to(event))

deadline = time.monotonic() + 60
while True:
    runs = get("/v1/runs")["items"]
    if len(runs) == 2 and all(r["status"] == "succeeded" for r in runs):
        break
    assert time.monotonic() < deadline and not any(r["status"] == "failed" for r in runs), runs
    time.sleep(0.1)
for run in runs:
    output = run["steps"][-1]["output"]
    body = s3.get_object(Bucket=output["bucket"], Key=output["key"])["Body"].read()
    assert struct.unpack(">I", body[16:20])[0] == 32, "the result is 32 wide"
print("all well")
