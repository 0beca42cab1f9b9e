package dev.imageflow.archive;

import java.time.Instant;
import java.time.ZoneId;
import java.time.format.DateTimeFormatter;
import java.util.Locale;
import java.util.regex.MatchResult;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.kafka.common.config.ConfigException;
import org.apache.kafka.connect.sink.SinkRecord;

/** Makes keys of objects from a template with variables in double braces. */
final class ObjectName {
    private static final Pattern VARIABLE = Pattern.compile("\\{\\{\\s*([^}\\s]+)\\s*}}");

    private final String template;
    private final ZoneId zone;

    ObjectName(String template, ZoneId zone) {
        this.template = template;
        this.zone = zone;
    }

    /** The key of the object that begins at an offset of the record's partition and holds records of the record's hour. */
    String of(SinkRecord record, long start) {
        return VARIABLE.matcher(template).replaceAll(found -> Matcher.quoteReplacement(value(found, record, start)));
    }

    private String value(MatchResult found, SinkRecord record, long start) {
        switch (found.group(1)) {
            case "topic":
                return record.originalTopic();
            case "partition":
                return record.originalKafkaPartition().toString();
            case "start_offset":
                return Long.toString(start);
            case "start_offset:padding=true":
                return String.format(Locale.ROOT, "%020d", start);
            case "timestamp:unit=yyyy":
                return time(record, "yyyy");
            case "timestamp:unit=MM":
                return time(record, "MM");
            case "timestamp:unit=dd":
                return time(record, "dd");
            case "timestamp:unit=HH":
                return time(record, "HH");
            default:
                throw new ConfigException("file.name.template", template, "unknown variable " + found.group());
        }
    }

    private String time(SinkRecord record, String unit) {
        return DateTimeFormatter.ofPattern(unit, Locale.ROOT)
                .format(Instant.ofEpochMilli(record.timestamp()).atZone(zone));
    }
}
