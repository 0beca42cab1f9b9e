# Makes a node of the namespaces that `unshare` has made around this shell, and becomes the process that holds them.
#   space.sh NAME FOLDER HOLDER OWN...
# FOLDER is the node's, HOLDER the program to become, each OWN a path that the node has for itself.
set -eu
name=$1 dir=$2 holder=$3
shift 3

# /proc is still the machine's, so this is the id by which the machine knows us.
read -r pid _ </proc/self/stat
echo "$name" >/proc/sys/kernel/hostname

# /sys shows the network devices of the namespace in which it was mounted; the cgroups stay as they were.
mkdir -p "$dir/cgroup"
mount --rbind /sys/fs/cgroup "$dir/cgroup"
mount -t sysfs sysfs /sys
mount --move "$dir/cgroup" /sys/fs/cgroup
mount -t proc proc /proc

for path; do
  mount --bind "$dir/own$path" "$path"
done

# What the kubelet insists on and would set for the whole machine: it finds files that say so already.
mkdir -p "$dir/sysctl"
for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
  file=$dir/sysctl/$(basename "${setting%=*}")
  echo "${setting#*=}" >"$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done

# Volumes that the kubelet mounts are seen by containerd, which makes the containers.
mount --make-rshared /
echo 1 >/proc/sys/net/ipv4/ip_forward
# Answers of a pod to a neighbour on the same bridge go through the service rules too.
[ ! -e /proc/sys/net/bridge/bridge-nf-call-iptables ] || echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
ip link set lo up

echo "$pid" >"$dir/holder.new"
mv "$dir/holder.new" "$dir/holder"
exec "$holder"
