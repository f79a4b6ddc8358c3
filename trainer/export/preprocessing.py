"""What to do with an image before a network sees it, in words: it goes into every exported file, beside the card."""

from __future__ import annotations

from trainer.model_card import METADATA_KEY, ModelCard

PREPROCESSING_KEY = "preprocessing"  # of the metadata of a file


def preprocessing_in_words(card: ModelCard) -> str:
    """How to make the input from an image, and probabilities from the output."""
    side, mean, std = card.val_crop, _in_words(card.mean), _in_words(card.std)
    classes = f"{len(card.classes):,} classes" if card.classes else "classes"
    names = f"; their names are {METADATA_KEY}.classes, in this order" if card.classes else ""
    return (
        f"An RGB image, 8 bits a channel. Resize it so that its short side has {card.val_resize} pixels "
        f"({card.resize_mode}, antialiased). Cut out its centre of {side} x {side} pixels. Divide by 255. Subtract the "
        f"mean {mean} and divide by the standard deviation {std}, of red, green and blue. "
        f"The input is float32 of the shape (images, 3, {side}, {side}). The output is a logit for each of the "
        f"{classes}{names}; its softmax gives probabilities."
    )


def _in_words(values: tuple[float, float, float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def metadata_of(card: ModelCard) -> dict[str, str]:
    """What every exported file says of itself: the card as JSON, and the preprocessing in words."""
    return {METADATA_KEY: card.to_text(), PREPROCESSING_KEY: preprocessing_in_words(card)}
