#!/bin/sh
# Makes the image that the tests build the Dockerfile on: a minimal Debian with Python, by debootstrap (so: root).
# It is set up like this machine (certificates, package mirrors, proxies), so that the Dockerfile stays as it ships.
# So an address in it may have a password of this machine: only root reads those files in it, and no container of the
# tests is root. It is for this machine alone: never push it, nor what is built on it.
# Nothing is done while the image exists and what it is made from is unchanged.
set -eu

image=resnet-spot-test-base:bookworm
suite=bookworm
settings=$(mktemp -d)
root=$(mktemp -d)
trap 'rm -rf "$settings" "$root"' EXIT
chmod 755 "$root"

# What apt and pip on this machine are told of mirrors, proxies and certificates; paths of local folders stay here.
apt-get indextargets --format "deb \$(REPO_URI) \$(RELEASE) \$(COMPONENT)" "Created-By: Packages" "Origin: Debian" 2>/dev/null |
  awk -v suite="$suite" '$3 == suite || index($3, suite "-") == 1' | sort -u >"$settings/sources.list" || true
apt-config dump | grep -E '^Acquire::(https?::|Check-)' >"$settings/apt.conf" || true
python3 -m pip config list 2>/dev/null | sed -nE "s/^(global|install|:env:)\.(index-url|extra-index-url|trusted-host|proxy|timeout|default-timeout)='(.*)'$/\2 = \3/p" |
  sed -E '/^extra-index-url/ s#file://[^ ]*##g; s/^default-timeout/timeout/; /= *$/d' | sort -u >"$settings/pip.options"
proxy=${https_proxy:-${HTTPS_PROXY:-}}
if [ -n "$proxy" ]; then
  printf 'Acquire::http::Proxy "%s";\nAcquire::https::Proxy "%s";\n' "$proxy" "$proxy" >>"$settings/apt.conf"
  echo "proxy = $proxy" >>"$settings/pip.options"
fi
{ echo '[global]'; cat "$settings/pip.options"; echo 'cert = /etc/ssl/certs/ca-certificates.crt'; } >"$settings/pip.conf"
mkdir "$settings/ca"
cp /usr/local/share/ca-certificates/*.crt "$settings/ca/" 2>/dev/null || true

inputs=$(cat "$0" "$settings/sources.list" "$settings/apt.conf" "$settings/pip.conf" "$settings"/ca/* 2>/dev/null | sha256sum | cut -c1-16)
if [ "$(docker image inspect --format '{{index .Config.Labels "resnet-spot.inputs"}}' "$image" 2>/dev/null)" = "$inputs" ]; then
  echo "base image $image: up to date"
  exit 0
fi

echo "base image $image: debootstrap $suite (about 40 s)"
mirror=$(awk -v suite="$suite" '$3 == suite { print $2; exit }' "$settings/sources.list")
if ! debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv "$suite" "$root" $mirror >"$settings/log" 2>&1; then
  tail -n 30 "$settings/log" >&2
  exit 1
fi
[ ! -s "$settings/sources.list" ] || cp "$settings/sources.list" "$root/etc/apt/sources.list"
cp "$settings/apt.conf" "$root/etc/apt/apt.conf.d/90this-machine"
cp "$settings/pip.conf" "$root/etc/pip.conf"
chmod 600 "$root/etc/apt/sources.list" "$root/etc/apt/apt.conf.d/90this-machine" "$root/etc/pip.conf"
cp "$settings"/ca/* "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
chroot "$root" update-ca-certificates >/dev/null 2>&1
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar -C "$root" --numeric-owner -c . | docker import --change "LABEL resnet-spot.inputs=$inputs" - "$image" >/dev/null
echo "base image $image: made"
