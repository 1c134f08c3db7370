#!/usr/bin/env bash
# plugin-folder.sh BUILD_DIR PLUGIN_DIR
# Copies the built plugin into a folder for GST_PLUGIN_PATH. (GStreamer opens every library below that path, and Cargo's
# target folder is full of others.) Copies by rename, because a running pipeline has the old file mapped and must not see it
# change.
set -euo pipefail
build=$1 folder=$2

mkdir -p "$folder"
if ! cmp -s "$build/libgstfacepipe.so" "$folder/libgstfacepipe.so"; then
    cp "$build/libgstfacepipe.so" "$folder/.libgstfacepipe.so.new"
    mv "$folder/.libgstfacepipe.so.new" "$folder/libgstfacepipe.so"
fi
