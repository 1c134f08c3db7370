# What GStreamer has on this machine, and how its tools take values.
# shellcheck shell=bash

# ELEMENT: whether GStreamer has it. Without the version it would ask for a plugin at least as new as GStreamer.
exists() {
    gst-inspect-1.0 --exists --atleast-version=0.0 "$1"
}

# ELEMENT PURPOSE PACKAGE
needs() {
    local element=$1 purpose=$2 package=$3
    exists "$element" ||
        fail "GStreamer has no element $element ($purpose): install $package, then check with 'facepipe doctor'"
}

# Prints N of the installed GStreamer 1.N.
gstreamer_minor() {
    local minor
    minor=$(gst-launch-1.0 --version | sed -n 's/^GStreamer 1\.\([0-9]*\).*/\1/p')
    echo "${minor:-0}"
}

# CHECKOUT: finds GStreamer and the plugin: on GST_PLUGIN_PATH or installed, else as `make setup` puts it into the checkout.
find_plugin() {
    local tool built=$1/.runtime/gstreamer-1.0
    for tool in gst-launch-1.0 gst-inspect-1.0; do
        command -v "$tool" >/dev/null || fail "$tool is missing: install gstreamer1.0-tools"
    done
    exists facepipe-facesink-http && return
    if [[ -f $built/libgstfacepipe.so ]]; then
        export GST_PLUGIN_PATH=$built${GST_PLUGIN_PATH:+:$GST_PLUGIN_PATH}
        exists facepipe-facesink-http && return
    fi
    fail "GStreamer does not find the plugin facepipe: run 'make setup', or export GST_PLUGIN_PATH=<folder of" \
        "libgstfacepipe.so>; 'facepipe doctor' says what else is missing"
}

# NAME VALUE: prints a property as gst-launch-1.0 parses it, whatever characters the value has.
property() {
    local value=${2//\\/\\\\}
    printf '%s="%s"' "$1" "${value//\"/\\\"}"
}

# ARGUMENT...: prints the gst-launch-1.0 command for a shell, with the variables that choose plugin and decoder, an element per
# line, passwords masked.
print_command() {
    local argument line='' variable first=yes plain='[A-Za-z0-9_.,:/+@%-]+'
    for variable in GST_PLUGIN_PATH GST_PLUGIN_FEATURE_RANK; do
        [[ -z ${!variable-} ]] || line+="$variable=${!variable@Q} "
    done
    printf '%s\n' "${line}gst-launch-1.0 --eos-on-shutdown \\"
    line='   '
    for argument; do
        if [[ $argument == ! ]]; then
            printf '%s ! \\\n' "$line"
            line='   ' first=yes
            continue
        fi
        # What is neither linked by ! nor a property begins another branch.
        if [[ $first == no && $argument != *=* ]]; then
            printf '%s \\\n' "$line"
            line='   '
        fi
        [[ $argument != user-pw=* && $argument != token=* ]] || argument="${argument%%=*}=\"***\""
        argument=$(mask "$argument")
        if [[ $argument =~ ^([a-z0-9-]+)=\"($plain)\"$ ]]; then
            argument=${BASH_REMATCH[1]}=${BASH_REMATCH[2]}
        elif [[ ! $argument =~ ^($plain=)?($plain)$ ]]; then
            argument="'${argument//\'/\'\\\'\'}'"
        fi
        line+=" $argument"
        first=no
    done
    printf '%s\n' "$line"
}
