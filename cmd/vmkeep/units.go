package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// size spells bytes in binary units: "1.5 GiB".
func size(n int64) string {
	if n < 1024 && n > -1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, unit := float64(n)/1024, 0
	for (v >= 1023.95 || v <= -1023.95) && unit < 5 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTPE"[unit])
}

// parseSize reads bytes: a number with an optional unit k, m, g, t (binary, as restic reads them), also KiB, MiB, ...
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "kKmMgGtTiIbB ")
	unit := strings.ToLower(strings.TrimSpace(s[len(digits):]))
	shift, ok := map[string]uint{"": 0, "b": 0, "k": 10, "kib": 10, "kb": 10, "m": 20, "mib": 20, "mb": 20, "g": 30, "gib": 30, "gb": 30, "t": 40, "tib": 40, "tb": 40}[unit]
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || !ok || !(n >= 0 && n*float64(int64(1)<<shift) <= 1<<62) { // NaN is neither
		return 0, fmt.Errorf("%q is not a size like 512k, 20GiB or 1.5T", s)
	}
	return int64(n * float64(int64(1)<<shift)), nil
}

// elapsed spells a duration as people say it: "0.4s", "5s", "12s", "3m20s", "2h05m".
func elapsed(d time.Duration) string {
	switch {
	case d < 0:
		return "-"
	case d < 10*time.Second && d%time.Second != 0:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}

// rate spells bytes per time.
func rate(n int64, d time.Duration) string {
	if d <= 0 {
		return "-"
	}
	return size(int64(float64(n)/d.Seconds())) + "/s"
}

// when spells a point in time in the user's zone.
func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// short is the form of an id that people are shown.
func short(id string) string { return id[:min(8, len(id))] }

// count spells a number of things: "1 disk", "2 disks", "3 directories".
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	if stem, ok := strings.CutSuffix(thing, "y"); ok {
		thing = stem + "ie"
	}
	return strconv.Itoa(n) + " " + thing + "s"
}
