package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vmkeep/vmkeep/repo"
)

// proof is the record that --proof writes: one JSON object. Version grows when a field changes its meaning; new
// fields may come at any time.
type proof struct {
	Version int `json:"proof_version"`
	verdict
	Host            string         `json:"host"` // where the check ran
	Findings        []repo.Finding `json:"findings"`
	FindingsOmitted int            `json:"findings_omitted,omitempty"`
	Coverage        *coverage      `json:"coverage,omitempty"` // of --daily
}

const proofVersion = 1

// writeProof replaces the file at once: whoever reads it meanwhile sees the old record or the new one.
func writeProof(name string, r *result) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("proof: %w", err)
		}
	}()
	record := proof{Version: proofVersion, verdict: r.verdict(), Findings: []repo.Finding{}, Coverage: r.coverage}
	if r.err == nil && r.report != nil {
		record.Findings, record.FindingsOmitted = append(record.Findings, r.report.Findings...), r.report.FindingsOmitted
	}
	if record.Host, err = os.Hostname(); err != nil {
		return err
	}
	text, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+"-tmp-")
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	// For monitoring to read; it holds no secret.
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
