package dev.imageflow.archive;

import java.time.ZoneId;
import java.util.List;
import java.util.Map;
import org.apache.kafka.common.config.AbstractConfig;
import org.apache.kafka.common.config.ConfigDef;
import org.apache.kafka.common.config.ConfigDef.Importance;
import org.apache.kafka.common.config.ConfigDef.Type;
import org.apache.kafka.common.config.ConfigDef.ValidList;
import org.apache.kafka.common.config.ConfigDef.ValidString;

/** The settings. What has one possible value here is asked for all the same: another value is not what was tried. */
final class Settings extends AbstractConfig {
    static final ConfigDef DEFINITION = new ConfigDef()
            .define("aws.access.key.id", Type.PASSWORD, Importance.HIGH, "The access key.")
            .define("aws.secret.access.key", Type.PASSWORD, Importance.HIGH, "The secret key.")
            .define("aws.s3.endpoint", Type.STRING, Importance.HIGH, "The URL of the server.")
            .define("aws.s3.region", Type.STRING, Importance.HIGH, "The region that requests are signed for.")
            .define("aws.s3.bucket.name", Type.STRING, Importance.HIGH, "The bucket.")
            .define("file.name.template", Type.STRING, Importance.HIGH, "The key of an object.")
            .define("file.name.timestamp.source", Type.STRING, ConfigDef.NO_DEFAULT_VALUE, ValidString.in("event"),
                    Importance.HIGH, "Whose clock the key is by.")
            .define("file.name.timestamp.timezone", Type.STRING, ConfigDef.NO_DEFAULT_VALUE, Importance.HIGH,
                    "The time zone of the key.")
            .define("file.compression.type", Type.STRING, ConfigDef.NO_DEFAULT_VALUE, ValidString.in("gzip"),
                    Importance.HIGH, "How objects are compressed.")
            .define("format.output.type", Type.STRING, ConfigDef.NO_DEFAULT_VALUE, ValidString.in("jsonl"),
                    Importance.HIGH, "What objects hold.")
            .define("format.output.fields", Type.LIST, ConfigDef.NO_DEFAULT_VALUE,
                    ValidList.in("key", "value", "offset", "timestamp", "headers"), Importance.HIGH,
                    "What a line holds.")
            .define("format.output.envelope", Type.STRING, ConfigDef.NO_DEFAULT_VALUE, ValidString.in("true"),
                    Importance.HIGH, "Whether a line is an object with the fields.");

    Settings(Map<String, String> given) {
        super(DEFINITION, given, false);
    }

    ObjectName objectName() {
        return new ObjectName(getString("file.name.template"), ZoneId.of(getString("file.name.timestamp.timezone")));
    }

    List<String> fields() {
        return getList("format.output.fields");
    }

    Bucket bucket() {
        return new Bucket(getString("aws.s3.endpoint"), getString("aws.s3.region"), getString("aws.s3.bucket.name"),
                getPassword("aws.access.key.id").value(), getPassword("aws.secret.access.key").value());
    }
}
