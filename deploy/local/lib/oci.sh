# shellcheck shell=bash
# Writes the archive of an image of one layer, for the two tiny images that the cluster itself needs: no image builder has to be
# installed for a cluster.

# write_image OUT NAME ROOT CONFIG: the files below ROOT as an OCI archive; CONFIG is the image's "config" object.
write_image() {
  local out=$1 name=$2 root=$3 config=$4 dir layer conf manifest arch created='1970-01-01T00:00:00Z'
  arch=$(dpkg --print-architecture 2>/dev/null || uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
  dir=$(mktemp -d)
  mkdir -p "$dir/blobs/sha256"
  layer=$(blob "$dir" < <(tar -C "$root" --numeric-owner --owner=0 --group=0 --mtime=@0 --sort=name -cf - .))
  conf=$(printf '{"created":"%s","architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$created" "$arch" "$config" "$layer" | blob "$dir")
  manifest=$(printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
    "$(descriptor "$dir" config.v1+json "$conf")" "$(descriptor "$dir" layer.v1.tar "$layer")" | blob "$dir")
  printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"io.containerd.image.name":"%s"}}]}' \
    "$manifest" "$(stat -c %s "$dir/blobs/sha256/$manifest")" "$name" >"$dir/index.json"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$dir/oci-layout"
  tar -C "$dir" -cf "$out.new" oci-layout index.json blobs
  mv "$out.new" "$out"
  rm -rf "$dir"
}

# blob DIR: keeps stdin under its own hash, which it prints.
blob() {
  local tmp hash
  tmp=$(mktemp -p "$1")
  cat >"$tmp"
  hash=$(sha256sum <"$tmp" | cut -d' ' -f1)
  mv "$tmp" "$1/blobs/sha256/$hash"
  printf '%s' "$hash"
}

descriptor() {
  printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s}' "$2" "$3" "$(stat -c %s "$1/blobs/sha256/$3")"
}
