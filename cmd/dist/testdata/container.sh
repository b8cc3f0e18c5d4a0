# container.sh DIRECTORY IMAGE WORKER: see TestImage. DIRECTORY is empty and goes afterwards.
mount -t tmpfs none "$1"
mount -t proc none /proc
mount -t cgroup2 none /sys/fs/cgroup # crun wants this version alone
ip link set lo up
mkdir -p "$1/bundle/rootfs" "$1/state" "$1/image"
tar -xf "$2" -C "$1/image"
for layer in "$1"/image/*.tar.gz; do
	tar -xzf "$layer" -C "$1/bundle/rootfs"
done
cp "$3" "$1/bundle/rootfs/worker"
cd "$1/bundle"
crun spec
python3 - "$1/image" <<'END'
import json, sys
image = sys.argv[1] + "/"
manifest = json.load(open(image + "manifest.json"))[0]
asked = json.load(open(image + manifest["Config"]))["config"]
spec = json.load(open("config.json"))
spec["root"]["readonly"] = False # as docker and podman do it
spec["process"]["terminal"] = False
spec["process"]["args"] = asked["Entrypoint"] + ["run", "--listen", "127.0.0.1:8080", "--workers", "2", "--log-level", "warn", "--", "/worker"]
spec["process"]["user"] = {"uid": 1000, "gid": 1000}
spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] not in ("network", "cgroup")]
spec["mounts"] = [m for m in spec["mounts"] if m["type"] != "cgroup"]
json.dump(spec, open("config.json", "w"))
open("health", "w").write(" ".join(asked["Healthcheck"]["Test"][1:]))
END
crun="crun --root $1/state --cgroup-manager=disabled"
$crun run trial &
until $crun exec --user 1000:1000 trial $(cat health) >/dev/null 2>&1; do kill -0 $!; done
$crun exec --user 1000:1000 trial $(cat health)
curl -s 127.0.0.1:8080 | grep -q 'visit 1 of 127.0.0.1'
$crun kill trial TERM # process 1 of the container is handfast, which ends its worker and then itself
wait $!
echo done
