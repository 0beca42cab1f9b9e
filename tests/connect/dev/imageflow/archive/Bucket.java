package dev.imageflow.archive;

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.time.Duration;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.HexFormat;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;
import org.apache.kafka.connect.errors.ConnectException;

/**
 * Puts objects. One kind of request, signed (SigV4) by hand: an S3 client would be 33 more jars to fetch, and the real
 * server of the test checks each signature.
 */
final class Bucket {
    private static final Duration PATIENCE = Duration.ofSeconds(10);
    private static final DateTimeFormatter TIME =
            DateTimeFormatter.ofPattern("yyyyMMdd'T'HHmmss'Z'").withZone(ZoneOffset.UTC);
    private static final String SIGNED = "host;x-amz-content-sha256;x-amz-date";

    private final HttpClient client =
            HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).connectTimeout(PATIENCE).build();
    private final String endpoint;
    private final String region;
    private final String name;
    private final String accessKey;
    private final String secretKey;

    Bucket(String endpoint, String region, String name, String accessKey, String secretKey) {
        this.endpoint = endpoint;
        this.region = region;
        this.name = name;
        this.accessKey = accessKey;
        this.secretKey = secretKey;
    }

    /** Returns when the server has the object, and throws when it may not have it. */
    void put(String key, byte[] content) {
        HttpResponse<String> answer;
        try {
            answer = client.send(request(key, content), HttpResponse.BodyHandlers.ofString());
        } catch (IOException | GeneralSecurityException e) {
            throw new ConnectException("putting " + name + "/" + key + " failed", e);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new ConnectException(e);
        }
        if (answer.statusCode() != 200) {
            throw new ConnectException(
                    "putting " + name + "/" + key + " failed: " + answer.statusCode() + " " + answer.body());
        }
    }

    private HttpRequest request(String key, byte[] content) throws GeneralSecurityException {
        URI uri = URI.create(endpoint + "/" + name + "/" + key);
        String time = TIME.format(Instant.now());
        String scope = time.substring(0, 8) + "/" + region + "/s3/aws4_request";
        String digest = hex(MessageDigest.getInstance("SHA-256").digest(content));
        String canonical = String.join("\n", "PUT", uri.getRawPath(), "", "host:" + uri.getAuthority(),
                "x-amz-content-sha256:" + digest, "x-amz-date:" + time, "", SIGNED, digest);
        String toSign = String.join("\n", "AWS4-HMAC-SHA256", time, scope,
                hex(MessageDigest.getInstance("SHA-256").digest(bytes(canonical))));
        byte[] secret = bytes("AWS4" + secretKey);
        for (String part : scope.split("/")) {
            secret = hmac(secret, part);
        }
        String credential = "AWS4-HMAC-SHA256 Credential=" + accessKey + "/" + scope + ", SignedHeaders=" + SIGNED
                + ", Signature=" + hex(hmac(secret, toSign));
        return HttpRequest.newBuilder(uri)
                .timeout(PATIENCE)
                .header("x-amz-content-sha256", digest)
                .header("x-amz-date", time)
                .header("Authorization", credential)
                .PUT(HttpRequest.BodyPublishers.ofByteArray(content))
                .build();
    }

    private static byte[] hmac(byte[] key, String text) throws GeneralSecurityException {
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(key, "HmacSHA256"));
        return mac.doFinal(bytes(text));
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static String hex(byte[] bytes) {
        return HexFormat.of().formatHex(bytes);
    }
}
