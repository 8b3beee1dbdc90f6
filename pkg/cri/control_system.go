package cri

import (
	"context"

	"github.com/subpod/subpod/pkg/control"
)

// Check looks for damage and orphans.
func (s *controlService) Check(ctx context.Context, req *control.CheckRequest) (*control.CheckResponse, error) {
	found, err := s.checker.Check(ctx, req.Repair)
	if err != nil {
		return nil, err
	}
	resp := &control.CheckResponse{Findings: []control.Finding{}}
	for _, f := range found {
		resp.Findings = append(resp.Findings, control.Finding(f))
	}
	return resp, nil
}
