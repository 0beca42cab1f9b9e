package dev.imageflow.archive;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.time.Instant;
import java.util.List;
import org.apache.kafka.connect.errors.DataException;
import org.apache.kafka.connect.header.Header;
import org.apache.kafka.connect.sink.SinkRecord;

/** A record as one line of JSON. Bytes are base64, and what is not there is null: a tombstone stays one. */
final class Lines {
    private final ObjectMapper json = new ObjectMapper();
    private final List<String> fields;

    Lines(List<String> fields) {
        this.fields = fields;
    }

    byte[] of(SinkRecord record) {
        ObjectNode line = json.createObjectNode();
        for (String field : fields) {
            switch (field) {
                case "key":
                    line.put(field, bytes(field, record.key()));
                    break;
                case "value":
                    line.put(field, bytes(field, record.value()));
                    break;
                case "offset":
                    line.put(field, record.originalKafkaOffset());
                    break;
                case "timestamp":
                    line.put(field, Instant.ofEpochMilli(record.timestamp()).toString());
                    break;
                default:
                    ArrayNode headers = line.putArray(field);
                    for (Header header : record.headers()) {
                        headers.addObject().put("key", header.key()).put("value", bytes(field, header.value()));
                    }
            }
        }
        try {
            return json.writeValueAsBytes(line);
        } catch (JsonProcessingException e) {
            throw new DataException(e);
        }
    }

    private static byte[] bytes(String field, Object value) {
        if (value == null || value instanceof byte[]) {
            return (byte[]) value;
        }
        throw new DataException("the " + field + " came as " + value.getClass().getName()
                + ": set its converter to org.apache.kafka.connect.converters.ByteArrayConverter");
    }
}
