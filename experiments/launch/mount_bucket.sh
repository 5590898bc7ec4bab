#!/bin/bash
# Mounts a folder of a bucket on a machine with Debian or Ubuntu, unless it is mounted.
#
#   bash mount_bucket.sh BUCKET FOLDER PATH
#
# gs://BUCKET/FOLDER can be read in PATH then. It installs gcsfuse from Google's package repository if
# it is missing (https://cloud.google.com/storage/docs/cloud-storage-fuse/install).
set -euo pipefail

if [ $# -ne 3 ]; then
  echo "error: give the bucket, its folder and where to mount it: bash $0 my-bucket text /mnt/text" >&2
  exit 2
fi
bucket=${1#gs://} folder=$2 path=$3

if mountpoint -q "$path" && ls "$path" > /dev/null; then
  exit 0
fi
if ! command -v gcsfuse > /dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  packages=https://packages.cloud.google.com/apt
  curl --fail --silent --show-error "$packages/doc/apt-key.gpg" | sudo tee "$key" > /dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  # A new host may be installing its own updates.
  sudo apt-get -o DPkg::Lock::Timeout=600 update
  sudo apt-get -o DPkg::Lock::Timeout=600 install -y gcsfuse
fi
# What a gcsfuse that was killed has left is no folder to mount on.
sudo umount --lazy "$path" 2> /dev/null || true
sudo mkdir -p -m 777 "$path"
gcsfuse --implicit-dirs --only-dir="$folder" "$bucket" "$path"
