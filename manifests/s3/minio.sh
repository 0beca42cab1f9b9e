#!/bin/sh
# Buckets, a user for each service with its own policy, and who is told of new objects. It may run again at any time.
set -eu
export MC_CONFIG_DIR=/tmp/mc
mc alias set store http://minio:9000 "$ROOT_USER" "$ROOT_PASSWORD" > /dev/null
for bucket in raw-images processed-images system-logs; do
  mc mb --ignore-existing "store/$bucket"
done
for service in gateway router dispatcher archive; do
  mc admin policy create store "imageflow-$service" "/etc/imageflow-s3/$service.json"
  access=$(cat "/users/$service/access-key")
  mc admin user add store "$access" "$(cat "/users/$service/secret-key")"
  mc admin policy attach store "imageflow-$service" --user "$access" 2> /tmp/attach || grep -q "already in effect" /tmp/attach
done
mc event add --ignore-existing --event put,delete store/raw-images arn:minio:sqs::imageflow:kafka
# Pods put results past the platform; triggers with platformObjects hear of them so. Not of their removal, which says nothing
# of who wrote them.
mc event add --ignore-existing --event put store/processed-images arn:minio:sqs::imageflow:kafka
echo "buckets, users and notifications are set"
