package dev.imageflow.archive;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.util.ArrayDeque;
import java.util.Collection;
import java.util.Deque;
import java.util.HashMap;
import java.util.Map;
import java.util.zip.GZIPOutputStream;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.connect.errors.ConnectException;
import org.apache.kafka.connect.sink.SinkRecord;
import org.apache.kafka.connect.sink.SinkTask;

/**
 * Gathers records and makes objects of them at each flush. An object begins where the last commit was or where the hour
 * changes, and is named by that offset: records that come again after a crash fill objects of the same names. The worker
 * commits after a flush that returned, and after one that threw it reads again from the last commit.
 */
public final class ArchiveSinkTask extends SinkTask {
    /** Bytes of lines above which a flush is asked for before its time. */
    private static final long MANY = 16L * 1024 * 1024;

    private final Map<TopicPartition, Deque<Piece>> open = new HashMap<>();
    private long gathered;
    private ObjectName names;
    private Lines lines;
    private Bucket bucket;

    /** An object to be. */
    private static final class Piece {
        private final String key;
        private final long start;
        private final ByteArrayOutputStream content = new ByteArrayOutputStream();

        private Piece(String key, long start) {
            this.key = key;
            this.start = start;
        }
    }

    @Override
    public void start(Map<String, String> given) {
        Settings settings = new Settings(given);
        names = settings.objectName();
        lines = new Lines(settings.fields());
        bucket = settings.bucket();
    }

    @Override
    public void put(Collection<SinkRecord> records) {
        for (SinkRecord record : records) {
            TopicPartition partition = new TopicPartition(record.originalTopic(), record.originalKafkaPartition());
            Deque<Piece> pieces = open.computeIfAbsent(partition, ignored -> new ArrayDeque<>());
            Piece piece = pieces.peekLast();
            if (piece == null || !piece.key.equals(names.of(record, piece.start))) {
                long start = record.originalKafkaOffset();
                piece = new Piece(names.of(record, start), start);
                pieces.addLast(piece);
            }
            byte[] line = lines.of(record);
            piece.content.write(line, 0, line.length);
            piece.content.write('\n');
            gathered += line.length;
        }
        if (gathered > MANY) {
            context.requestCommit();
        }
    }

    @Override
    public void flush(Map<TopicPartition, OffsetAndMetadata> offsets) {
        try {
            for (Deque<Piece> pieces : open.values()) {
                for (Piece piece : pieces) {
                    bucket.put(piece.key, gzip(piece.content));
                }
            }
        } finally {
            forget();
        }
    }

    private static byte[] gzip(ByteArrayOutputStream content) {
        ByteArrayOutputStream small = new ByteArrayOutputStream();
        try (GZIPOutputStream stream = new GZIPOutputStream(small)) {
            content.writeTo(stream);
        } catch (IOException e) {
            throw new ConnectException(e);
        }
        return small.toByteArray();
    }

    /** What was gathered is in the bucket, or will be read again. */
    private void forget() {
        open.clear();
        gathered = 0;
    }

    @Override
    public void close(Collection<TopicPartition> partitions) {
        open.keySet().removeAll(partitions);
    }

    @Override
    public void stop() {
        forget();
    }

    @Override
    public String version() {
        return "1";
    }
}
