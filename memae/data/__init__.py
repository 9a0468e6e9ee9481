"""Clips of video frames."""

from memae.data.video_datasets import VideoDataset, VideoDatasetOneDir

__all__ = ["VideoDataset", "VideoDatasetOneDir"]
