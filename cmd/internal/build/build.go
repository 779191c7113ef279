// Package build tells what a program was built from. It hides where the toolchain writes that down.
package build

import (
	"runtime"
	"runtime/debug"
	"strings"
)

// Version is the version of the module the running program was built from: a tag, or "devel" with the revision.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version := strings.TrimPrefix(info.Main.Version, "v")
	if version != "" && version != "(devel)" {
		return version
	}
	version = "devel"
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			version += "+" + s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			version += ".dirty"
		}
	}
	return version
}

// Platform is the toolchain and the machine the program is for: "go1.26.0 linux/amd64".
func Platform() string { return runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH }
