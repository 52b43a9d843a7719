"""What a model shows, counted on folders of pictures: this package never loads a denoiser."""
