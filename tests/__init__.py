"""Tests of Yujian Presence."""
