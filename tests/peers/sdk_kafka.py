"""Events of the CloudEvents SDK through Kafka: `write BOOTSTRAP TOPIC`, or `read BOOTSTRAP TOPIC COUNT`.

What is read is printed as JSON, an event a line, in the form that the Go program beside this one prints too.
"""
import base64
import json
import sys
import time
from datetime import datetime

from cloudevents.http import CloudEvent
from cloudevents.kafka import KafkaMessage, from_binary, from_structured, to_binary, to_structured
from confluent_kafka import Consumer, Producer, TopicPartition

PATIENCE = 60


def write(bootstrap, topic):
    producer = Producer({"bootstrap.servers": bootstrap})
    failures = []
    for kind, media, data in (
        ("json", "application/json", {"text": "Grüße", "n": 7}),
        ("bytes", "application/octet-stream", b"\x00\xff\x07"),
    ):
        for mode, to in (("binary", to_binary), ("structured", to_structured)):
            event = CloudEvent(
                {
                    "id": f"python-{kind}-{mode}",
                    "type": "com.example.sdk",
                    "source": "https://shop.example/a%20b",
                    "subject": "Grüße 100%.jpg",
                    "time": "2026-11-24T10:00:00.123Z",
                    "datacontenttype": media,
                    "colour": "grün",
                    "partitionkey": "order 7",
                },
                data,
            )
            as_it_is = {"data_marshaller": lambda data: data} if kind == "bytes" else {}
            message = to(event, **as_it_is)
            producer.produce(
                topic, key=message.key, value=message.value, headers=dict(message.headers),
                on_delivery=lambda error, _: error and failures.append(error),
            )
    assert producer.flush(PATIENCE) == 0 and not failures, failures


def parse(record):
    headers = dict(record.headers() or [])
    message = KafkaMessage(headers, record.key(), record.value())
    media = headers.get("content-type", b"")
    if media.startswith(b"application/cloudevents"):
        event = from_structured(message)
    elif media == b"application/json":
        event = from_binary(message)
    else:
        event = from_binary(message, data_unmarshaller=lambda data: data)
    attributes = dict(event.get_attributes())
    seen = {name: attributes.pop(name, None) for name in ("id", "type", "source", "subject", "datacontenttype")}
    moment = attributes.pop("time", None)
    seen["time"] = moment and round(datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp() * 1000)
    attributes.pop("specversion")
    # The SDK takes the record's key for this extension.
    seen["key"] = attributes["partitionkey"] = attributes["partitionkey"].decode()
    seen["extensions"] = attributes
    data = event.get_data()
    seen["data"] = {"base64": base64.b64encode(data).decode()} if isinstance(data, bytes) else data
    return seen


def read(bootstrap, topic, count):
    consumer = Consumer({
        "bootstrap.servers": bootstrap, "group.id": "sdk-python", "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
    })
    partitions = consumer.list_topics(topic, timeout=PATIENCE).topics[topic].partitions
    consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
    deadline = time.monotonic() + PATIENCE
    while count > 0:
        assert time.monotonic() < deadline, f"{count} records are missing"
        record = consumer.poll(1)
        if record is None:
            continue
        assert not record.error(), record.error()
        print(json.dumps(parse(record)), flush=True)
        count -= 1
    consumer.close()


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*sys.argv[2:])
    else:
        read(sys.argv[2], sys.argv[3], int(sys.argv[4]))
