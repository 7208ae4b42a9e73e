#!/bin/bash
# setup.sh CACHE FOLDER: put an aarch64 Debian Python and the agent's dependencies into CACHE, where they stay, and into
# FOLDER the launcher FOLDER/python of this tree's agent. Changes nothing else on the machine; needs apt-get, dpkg-deb,
# qemu-aarch64-static and the network. A cache that is complete is left as it is: trees share it, so it names none.
set -euo pipefail
tree=$(realpath -m "$2")
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=$(realpath -m "$1")/$(cat "$root/constraints.txt" "$root/pyproject.toml" "$0" | sha256sum | cut -c1-16)

fill_cache() {
  rm -rf "$folder"/{apt,debs,root,site}
  mkdir -p "$folder"/apt/{lists/partial,cache/archives/partial,etc} "$folder"/debs/partial "$folder"/root "$folder"/site
  touch "$folder/apt/status"
  apt=(apt-get -q -y -o Dir::State="$folder/apt" -o Dir::State::lists="$folder/apt/lists" -o Dir::Cache="$folder/apt/cache"
    -o Dir::State::status="$folder/apt/status" -o Dir::Cache::archives="$folder/debs" -o APT::Architecture=arm64
    -o APT::Architectures=arm64 -o Acquire::Languages=none -o APT::Install-Recommends=false -o Acquire::Retries=3
    -o APT::Sandbox::User=root -o Debug::NoLocking=true)
  "${apt[@]}" update
  "${apt[@]}" --download-only install python3-minimal python3.11 libpython3.11-stdlib ca-certificates
  for package in "$folder"/debs/*.deb; do dpkg-deb -x "$package" "$folder/root"; done

  # What `pip install wasmfleet` would bring, as wheels for the device; the agent itself comes from this tree.
  "$root/.venv/bin/python" - "$root" >"$folder/requirements.txt" <<'PYTHON'
import sys, tomllib
with open(f"{sys.argv[1]}/pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["dependencies"], sep="\n")
PYTHON
  "$root/.venv/bin/python" -m pip --disable-pip-version-check install --quiet --target "$folder/site" \
    --constraint "$root/constraints.txt" --requirement "$folder/requirements.txt" --only-binary=:all: \
    --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none \
    --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_34_aarch64

  rm -rf "$folder"/{apt,debs}
  touch "$folder/.ready"
}

mkdir -p "$folder" "$tree/dist"
exec 9>"$folder/lock"
flock 9
if [ ! -e "$folder/.ready" ]; then fill_cache; fi
flock -u 9

# The agent asks for the version of its own distribution.
cp -r "$root"/.venv/lib/python3*/site-packages/wasmfleet-*.dist-info "$tree/dist/"
# sys.executable names this launcher, so that the agent's own child processes are emulated too.
cat >"$tree/python" <<LAUNCHER
#!/bin/bash
exec qemu-aarch64-static -L "$folder/root" -0 "$tree/python" -E LD_LIBRARY_PATH= -E PYTHONHOME=/usr \\
  -E PYTHONPATH="$folder/site:$tree/dist:$root" -E PYTHONDONTWRITEBYTECODE= "$folder/root/usr/bin/python3.11" "\$@"
LAUNCHER
chmod +x "$tree/python"
cd /
"$tree/python" -P -c "import platform, agent.daemon; assert platform.machine() == 'aarch64'"
