package dev.imageflow.archive;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import org.apache.kafka.common.config.Config;
import org.apache.kafka.common.config.ConfigDef;
import org.apache.kafka.common.config.ConfigValue;
import org.apache.kafka.connect.connector.Task;
import org.apache.kafka.connect.sink.SinkConnector;

/**
 * A small S3 sink that stands in for the one that manifests/kafka names, which cannot be fetched for tests. It understands
 * the same names of settings, as far as the manifest uses them, and refuses all others: so the manifest says nothing that
 * was not tried.
 */
public final class ArchiveSinkConnector extends SinkConnector {
    private Map<String, String> settings;

    @Override
    public Config validate(Map<String, String> given) {
        List<ConfigValue> values = new ArrayList<>(super.validate(given).configValues());
        for (String name : given.keySet()) {
            boolean ours = name.startsWith("aws.") || name.startsWith("file.") || name.startsWith("format.");
            if (ours && !Settings.DEFINITION.names().contains(name)) {
                String error = name + " is not known to the sink of the tests: add it there before a manifest uses it";
                values.add(new ConfigValue(name, null, Collections.emptyList(), List.of(error)));
            }
        }
        return new Config(values);
    }

    @Override
    public void start(Map<String, String> given) {
        settings = given;
    }

    @Override
    public Class<? extends Task> taskClass() {
        return ArchiveSinkTask.class;
    }

    @Override
    public List<Map<String, String>> taskConfigs(int count) {
        return Collections.nCopies(count, settings);
    }

    @Override
    public void stop() {
        // The tasks hold all there is.
    }

    @Override
    public ConfigDef config() {
        return Settings.DEFINITION;
    }

    @Override
    public String version() {
        return "1";
    }
}
